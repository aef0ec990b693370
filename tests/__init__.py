"""A package, or one of the same name that another distribution installs would be found first."""
