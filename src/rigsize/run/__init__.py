"""Run: the step that is traced and the step that is executed, which are one function."""
