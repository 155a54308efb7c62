"""Pages about runs, from what their workdirs hold."""

from covidjax import process

process.let_matplotlib_write()
