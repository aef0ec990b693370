"""From a trace, a strategy and an accelerator to one rank's timeline of events."""
