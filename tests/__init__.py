"""The tests. A regular package, because a package that is called `tests` is installed by some dependencies."""
