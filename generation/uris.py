"""URIs of folders and files: `s3://bucket/run?region=eu-west-1`, where what follows the question mark belongs to the bucket, or local paths."""

import re

_CREDENTIALS = re.compile(r"(?<=://)(?!anonymous@)([^/?]*|[^?]*:[^?]*)@")


def below(uri: str, relative: str) -> str:
    """The URI of a file or folder below another one."""
    place, mark, options = _split(uri)
    return f"{place.rstrip('/')}/{relative}{mark}{options}"


def beside(uri: str, suffix: str) -> str:
    """The URI of a folder beside another one, named as that with a suffix."""
    place, mark, options = _split(uri)
    return f"{place.rstrip('/')}{suffix}{mark}{options}"


def folder_and_name(uri: str) -> tuple[str, str]:
    """The URI of the folder that a file is in, and the file's name there."""
    place, mark, options = _split(uri)
    folder, _, name = place.rpartition("/")
    return f"{folder}{mark}{options}", name


def has_credentials(uri: str) -> bool:
    """Whether a password or key is written into it, which would end up in records, reports and logs."""
    return bool(_CREDENTIALS.search(uri))


def without_credentials(uri: str) -> str:
    """The URI to show to people."""
    return _CREDENTIALS.sub("***@", uri)


def _split(uri: str) -> tuple[str, str, str]:
    return uri.partition("?") if "://" in uri else (uri, "", "")
