"""Pages about runs, from what their workdirs hold."""
