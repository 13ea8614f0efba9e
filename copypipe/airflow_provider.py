"""What Airflow is told of copypipe, by its entry point `apache_airflow_provider`.

Imports nothing: Airflow reads it whenever one of its processes starts.
"""


def get_provider_info() -> dict[str, object]:
    """Return what `airflow providers list` shows (Airflow's provider_info.schema.json)."""
    return {
        "package-name": "copypipe",
        "name": "copypipe",
        "description": "Copy slices of tables from one PostgreSQL server to another with COPY.",
        "integrations": [{"integration-name": "copypipe", "tags": ["software"]}],
        "operators": [{"integration-name": "copypipe", "python-modules": ["copypipe.airflow"]}],
    }
