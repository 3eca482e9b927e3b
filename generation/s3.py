"""Writes to S3 and to stores that speak it, through botocore: pyarrow 26 puts no object conditionally.

Knows its credentials from where the AWS tools look (environment, `~/.aws`, the role of the pod or machine), and its endpoint from the
URI or AWS_ENDPOINT_URL, as pyarrow does.
"""

import errno
import os
from functools import lru_cache
from typing import Any

from generation.errors import StorageError

_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 30
_ROLE_ATTEMPTS = 5
"""To learn a role's credentials, which the nodes of a cluster that has just started all ask for."""
_WRITER = "psi-writer"
_PRECONDITION_FAILED, _NOT_FOUND = 412, 404


@lru_cache(maxsize=16)
def open_s3(region: str, options: tuple[tuple[str, str], ...], process: int) -> "S3Objects":
    """The client for a region, with the options of an URI; one for a process, as a forked one must not use the connections of its parent.

    Raises:
        StorageError: botocore is missing.
        OSError: There are no credentials.
    """
    del process
    try:
        from botocore.config import Config
        from botocore.session import get_session
    except ImportError as error:
        raise StorageError("s3://: writing to a bucket needs botocore; install psi[s3]") from error
    given = dict(options)
    endpoint = _endpoint(given)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"total_max_attempts": 1},  # `Patience` tries again
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    session = get_session()
    session.set_config_variable("metadata_service_num_attempts", _ROLE_ATTEMPTS)
    if session.get_credentials() is None:  # a client without them would be kept, and never look again
        raise OSError("no AWS credentials in the environment, ~/.aws or the role of the pod or machine")
    return S3Objects(
        session.create_client(
            "s3", region_name=region, endpoint_url=endpoint, verify=given.get("tls_ca_file_path"), config=config
        )
    )


class S3Objects:
    """`Objects` of S3.

    Args:
        client: botocore's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.is_exclusive = False

    def put_new(self, path: str, content: bytes, writer: str) -> None:
        """As in `Objects`."""
        self._call("put_object", path, Body=content, IfNoneMatch="*", Metadata={_WRITER: writer})

    def put(self, path: str, content: bytes) -> None:
        """As in `Objects`."""
        self._call("put_object", path, Body=content)

    def writer_of(self, path: str) -> str | None:
        """As in `Objects`."""
        try:
            return self._call("head_object", path)["Metadata"].get(_WRITER)
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        """As in `Objects`."""
        self._call("delete_object", path)

    def _call(self, operation: str, path: str, **arguments: Any) -> Any:
        """One request; its failure as an OSError of the kind that pyarrow raises."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
        from botocore.exceptions import ConnectionError as NoConnectionError

        bucket, _, key = path.partition("/")
        try:
            return getattr(self._client, operation)(Bucket=bucket, Key=key, **arguments)
        except ClientError as error:
            status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
            code = error.response["Error"]["Code"]
            if status == _PRECONDITION_FAILED:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
            if status == _NOT_FOUND and code != "NoSuchBucket":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise OSError(f"AWS Error {code} (HTTP status {status}): {error}") from error
        except SSLError as error:
            raise OSError(str(error)) from error
        except (NoConnectionError, HTTPClientError) as error:  # or one that did not last until the answer
            raise OSError(errno.ECONNRESET, str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error


def _endpoint(options: dict[str, str]) -> str | None:
    """The URL of a store other than Amazon's."""
    override = options.get("endpoint_override")
    if not override:
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return override if "://" in override else f"{options.get('scheme', 'https')}://{override}"
