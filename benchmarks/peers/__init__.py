"""The same work in other frameworks, written as their users write it."""
