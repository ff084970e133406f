"""Where a database is: a URL as its user gives it, as libpq takes it, and as it may be shown."""

from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from sona.errors import SonaTypeError, SonaValueError

SCHEMA = "sona"
MAX_IDENTIFIER = 63  # bytes
_SECRET = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class Place:
    """
    A schema of a database.

    Attributes
    ----------
    shown : str
        The URL without a password.
    schema : str
    parameters : dict
        Of libpq, with the password; not in the repr.
    """

    shown: str
    schema: str
    parameters: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, url: str, schema: str | None = None) -> "Place":
        """
        Parameters
        ----------
        url : str
            ``postgresql://user:password@host:port/database?option=value`` as libpq takes it, and ``schema=name`` as one more option.
        schema : str, optional
            Instead of that of the URL; by default "sona".

        Raises
        ------
        SonaTypeError, SonaValueError
            Something else; the message does not repeat the URL, which may hold a password.
        """
        if not isinstance(url, str):
            raise SonaTypeError(f"expected url to be a str, got {type(url).__name__}")
        try:
            base, _, query = url.partition("?")
            options = [each for each in query.split("&") if each]
            given = [unquote(each.removeprefix("schema=")) for each in options if each.startswith("schema=")]
            rest = "&".join(each for each in options if not each.startswith("schema="))
            bare = f"{base}?{rest}" if rest else base
            if not bare.startswith(("postgresql://", "postgres://")) or "\0" in bare:
                raise ValueError
            found = {key: str(value) for key, value in conninfo_to_dict(bare).items() if value is not None}
        except (ProgrammingError, ValueError):
            raise SonaValueError("expected a URL like postgresql://user@host/database, got one that libpq does not take") from None
        name = schema if schema is not None else given[-1] if given else SCHEMA
        if not isinstance(name, str):
            raise SonaTypeError(f"expected schema to be a str, got {type(name).__name__}")
        if not 0 < len(name.encode(errors="replace")) <= MAX_IDENTIFIER or "\0" in name or name.startswith("pg_"):
            raise SonaValueError(
                f"expected a schema of 1 to {MAX_IDENTIFIER} bytes, without NUL, that does not begin with pg_, got {name!r}"
            )
        return cls(_shown(found, name), name, found)

    def scrubbed(self, text: str) -> str:
        """`text` without the passwords."""
        for key in _SECRET:
            if secret := self.parameters.get(key):
                text = text.replace(secret, "***")
        return text


def _shown(parameters: dict[str, str], schema: str) -> str:
    user = quote(parameters.get("user", ""), safe="")
    host, port = parameters.get("host", ""), parameters.get("port", "")
    where = f"[{host}]" if ":" in host else quote(host, safe=",.-_")
    text = f"postgresql://{user}{'@' * bool(user)}{where}{':' * bool(port)}{port}/{quote(parameters.get('dbname', ''), safe='')}"
    return text if schema == SCHEMA else f"{text}?schema={quote(schema, safe='')}"
