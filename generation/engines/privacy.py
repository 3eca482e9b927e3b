"""Which endpoints may see which tasks, be it in prompts or in figures of their training."""

from urllib.parse import urlsplit

from generation.config import TaskConfig
from generation.errors import PrivacyError


def require_allowed(url: str, task: TaskConfig) -> None:
    """Check that a task may be sent to an endpoint's URL.

    Raises:
        PrivacyError: The task is private and the endpoint's host is not on its list.
    """
    if task.privacy == "public":
        return
    parts = urlsplit(url)
    host, address = parts.hostname or "", parts.netloc.rpartition("@")[2].lower()
    allowed = {entry.lower() for entry in task.allowed_endpoints}
    if not host or not {host, address} & allowed:
        raise PrivacyError(
            f"task '{task.name}' is private and {address or url} is not among its allowed_endpoints "
            f"({', '.join(sorted(allowed)) or 'none'}); add the host there, or do without the endpoint"
        )
