"""Settings: the schema (`schema`), YAML to schema (`compose`), and refusing what cannot work (`check`)."""
