"""The program `attention-sinks`, which is also `python -m attention_sinks`.

Every subcommand is a module that `app.py` names. What a subcommand needs is imported when it runs, so that `--help` and
the completion of a shell need not wait for it.
"""
