"""The setting data.columns: the columns of the user's files that hold our fields."""

from selfreward_jax.config.errors import ConfigError, brief

# The fields of a record that may have a column of the user's own; data/fields.py has the names that are known anyway.
COLUMN_FIELDS = (
    *("prompt", "system", "context", "history", "messages", "response", "answers", "chosen", "rejected"),
    *("chosen_score", "rejected_score", "score", "rank", "label", "judgment", "language"),
)


def parse_columns(text: str) -> dict[str, str]:
    """The column of each field of "prompt=question,chosen=good".

    Raises:
      ConfigError: a part is no FIELD=COLUMN, a field is unknown or occurs twice, or two fields have one column.
    """
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        field, _, column = (side.strip() for side in part.partition("="))
        if not field or not column:
            raise _refuse(text, f"{brief(part)} is no FIELD=COLUMN", "write prompt=question,response=solution")
        if field not in COLUMN_FIELDS:
            raise _refuse(text, f"{brief(field)} is no field", f"use {', '.join(COLUMN_FIELDS)}")
        if field in columns or column in columns.values():
            raise _refuse(text, f"{brief(part)} repeats a field or a column", "give each once")
        columns[field] = column
    return columns


def _refuse(text: str, fault: str, remedy: str) -> ConfigError:
    return ConfigError(f"data.columns is {brief(text)}; {fault}: {remedy}")
