"""The plugins of this suite; each file of tests/plugins is one topic."""

# Those that others import come first: pytest rewrites assertions only in what is not imported yet.
pytest_plugins = (
    "plugins.canary",
    "plugins.servers",
    "plugins.databases",
    "plugins.command",
    "plugins.rows",
    "plugins.proxy",
    "plugins.tls",
    "plugins.ways",
    "plugins.slow",
    "plugins.compiled",
)
