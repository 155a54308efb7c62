"""What stands in a compiled program: products of kernels and maps, and what devices tell each other."""

import collections
import re
from typing import Any

# How much of LLVM's work is done has no bearing on what XLA optimises, and is half of the time.
QUICKLY = {"xla_backend_optimization_level": 0}
# What a backend's library is called, such as __cudnn$convForward and __cublas$gemm.
LIBRARY = r'custom_call_target="[^"]*(?:conv|gemm|dot|matmul)'
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


def lowered_products(lowered: Any) -> int:
    """Convolutions and dots of a program before XLA optimises it; a function counts as often as it is called."""
    functions: dict[str, str] = {}
    for text in re.split(r"\n(?=\s*func\.func )", lowered.as_text())[1:]:
        found = re.match(r"\s*func\.func (?:public |private )?@(\S+?)\(", text)
        assert found
        functions[found[1]] = text

    def count(name: str) -> int:
        own = len(re.findall(r"stablehlo\.(?:convolution|dot_general)\b", functions[name]))
        return own + sum(count(called) for called in re.findall(r"\bcall @([\w.]+)\(", functions[name]))

    return count("main")


def compiled_products(compiled: Any) -> int:
    """Convolutions and dots of an optimised program, and calls of a library that computes such.

    They are counted together, as the compiler makes some of either into the other.
    """
    program = compiled.as_text()
    return len(re.findall(r" = \S+ (?:convolution|dot)\(", program)) + len(re.findall(LIBRARY, program, re.IGNORECASE))


def reduced_elements(compiled: Any) -> collections.Counter[str]:
    """Numbers that devices exchange in one run of an optimised program, by operation."""
    found: collections.Counter[str] = collections.Counter()
    for shapes, operation in re.findall(rf" = (\(?[a-z0-9]+\[.*?) ({COLLECTIVES})(?:-start)?\(", compiled.as_text()):
        for dimensions in re.findall(r"[a-z0-9]+\[([\d,]*)\]", shapes):
            size = 1
            for dimension in filter(None, dimensions.split(",")):
                size *= int(dimension)
            found[operation] += size
    return found
