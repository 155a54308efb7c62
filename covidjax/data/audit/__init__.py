"""What is wrong with a data set and its split, before anything is trained: one module for a kind of finding."""
