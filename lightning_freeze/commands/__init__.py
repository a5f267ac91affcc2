"""One file per command of `lightning-freeze`; `cli.COMMANDS` lists them.

A command has `HELP` (one line), `DESCRIPTION`, `add_arguments(parser)` and `run(options) -> str`, which returns what is
printed and raises a FreezeError for a user error. Where further options override those of the config, it has
`TAKES_OVERRIDES = True` and finds them in `options.overrides`. Imports of torch, and of modules that import it, stand
inside `run`: the file itself is imported for `--help`.
"""
