"""Operations of the networks in a compiled library on a CPU, see README.md; `covidjax.ops` decides where they stand."""
