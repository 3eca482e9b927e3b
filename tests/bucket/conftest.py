from collections.abc import Iterator
from itertools import count

import pytest

from tests.bucket.proxy import Proxy, faulty
from tests.bucket.server import BUCKET, object_store

_folders = count()


@pytest.fixture(scope="session")
def store_port() -> Iterator[int]:
    with object_store() as port:
        yield port


@pytest.fixture
def proxy(store_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy of the test's own, and credentials in the environment."""
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with faulty(store_port) as proxy:
        yield proxy


@pytest.fixture
def uri(proxy: Proxy) -> str:
    """A folder of the test's own in the bucket, behind the proxy."""
    return f"s3://{BUCKET}/run-{next(_folders)}{proxy.uri_options}"
