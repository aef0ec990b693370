"""Trace: what the real model does on an accelerator, recorded without one.

Only `profile`, `sizes`, `key` and `store` are free of torch; everything else imports it.
"""
