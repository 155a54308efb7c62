"""Operations of the networks in a compiled library on a CPU, see docs/native.md; `covidjax.ops` decides where."""
