"""A connection to a Kubernetes API server, and what is known of the objects there without asking again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from framework.errors import UserError

if TYPE_CHECKING:
    from lightkube import Client

_TRIES, _FORBIDDEN = 5, 403
_LIST_S, _TRUST_S, _AWAY_S, _GATHER_S = 1.0, 30.0, 1.0, 0.05


class Connection:
    """Asks an API server, several times where it is away or overwhelmed.

    Args:
        context: of the kubeconfig; by default its current one.
        namespace: by default that of the context.

    Raises:
        UserError: when no cluster is known.
    """

    def __init__(self, context: str | None, namespace: str | None) -> None:
        try:
            from lightkube import Client, KubeConfig
            from lightkube.core.exceptions import ConfigError
        except ImportError:
            raise UserError("kubernetes needs lightkube: pip install 'declarative-experiments[kubernetes]'") from None
        try:
            self.client: Client = Client(config=KubeConfig.from_env().get(context), namespace=namespace)
        except (ConfigError, OSError) as error:
            raise UserError(f"no Kubernetes cluster is known (KUBECONFIG, ~/.kube/config): {error}") from None

    @property
    def namespace(self) -> str:
        """Where objects go."""
        return str(self.client.namespace)

    def ask(self, question: Callable[[], Any]) -> Any:
        """Return the answer to a question.

        Raises:
            ApiError: when the server refuses.
            UserError: when it stays away.
        """
        from httpx2 import HTTPError
        from lightkube.core.exceptions import ApiError

        for attempt in range(_TRIES):
            try:
                return question()
            except HTTPError as error:
                if isinstance(error, ApiError) and error.status.code != 429 and (error.status.code or 0) < 500:
                    raise
                reason = str(error)
            if attempt < _TRIES - 1:
                time.sleep(0.2 * 2**attempt)
        raise UserError(f"the Kubernetes API server at {self.client.config.cluster.server} is away: {reason}")

    def get(self, kind: type[Any], name: str) -> Any:
        """Return an object."""
        return self.ask(lambda: self.client.get(kind, name))

    def list(
        self,
        kind: type[Any],
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        if_allowed: bool = False,
    ) -> list[Any]:
        """Return the objects of a kind that have some labels, and some values in their fields.

        Args:
            kind: of object.
            labels, fields: what they have.
            if_allowed: none where one may not look.
        """
        from lightkube.core.exceptions import ApiError

        try:
            return self.ask(lambda: list(self.client.list(kind, labels=dict(labels or {}), fields=dict(fields or {}))))
        except ApiError as error:
            if not if_allowed or error.status.code != _FORBIDDEN:
                raise
            return []

    def create(self, manifest: Any) -> Any:
        """Create an object; one that is there has the name of this very attempt, and is what was wanted."""
        from lightkube.core.exceptions import ApiError

        try:
            return self.ask(lambda: self.client.create(manifest))
        except ApiError as error:
            if error.status.code != 409:
                raise
            return self.get(type(manifest), manifest.metadata.name)

    def adopt(self, owner: Any, manifest: Any) -> None:
        """Have an object go when another one goes."""
        reference = {
            "apiVersion": owner.apiVersion, "kind": owner.kind, "name": owner.metadata.name, "uid": owner.metadata.uid,
        }  # fmt: skip
        patch = {"metadata": {"ownerReferences": [reference]}}
        self.ask(lambda: self.client.patch(type(manifest), manifest.metadata.name, patch))

    def knows(self, kind: type[Any]) -> bool:
        """Return whether there are such objects here, and one may look at them."""
        from lightkube.core.exceptions import ApiError

        try:
            self.list(kind, {"none": "none"})
        except ApiError as error:
            if error.status.code not in (403, 404):
                raise
            return False
        return True

    def delete(self, kind: type[Any], name: str, grace_s: int | None = None) -> None:
        """Delete an object, and in the background what belongs to it; that there is none is well, too."""
        from lightkube.core.exceptions import ApiError
        from lightkube.types import CascadeType

        try:
            self.ask(lambda: self.client.delete(kind, name, grace_period=grace_s, cascade=CascadeType.BACKGROUND))
        except ApiError as error:
            if error.status.code != 404:
                raise


class Watch:
    """The objects of one kind, by name.

    They are listed once a second at most, while somebody asks. Once somebody waits, the server tells of changes by
    itself, and they are listed again when it has forgotten where it was (410), was away, or has been silent for long.

    Args:
        connection: to the API server.
        kind: of the objects.
        labels: that they have.
    """

    def __init__(self, connection: Connection, kind: type[Any], labels: Mapping[str, str]) -> None:
        self.connection, self.kind = connection, kind
        self.labels: dict[str, Any] = dict(labels)
        self._objects: dict[str, Any] = {}
        self._known = False
        self._heard = float("-inf")
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> Mapping[str, Any]:
        """Return what is known; while the server is away, that is what was known last.

        Raises:
            UserError: when it was away from the beginning.
        """
        if time.monotonic() - self._heard > (_TRUST_S if self._follows() else _LIST_S):
            try:
                self._list()
            except UserError:
                if not self._known:
                    raise
        return self._objects

    def forget(self) -> None:
        """Have the next look list them."""
        self._heard = float("-inf")

    def wait(self, seconds: float) -> None:
        """Wait for a change, at most so long."""
        if not self._follows():
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        if self._changed.wait(seconds):
            time.sleep(_GATHER_S)  # changes come in crowds
        self._changed.clear()

    def _follows(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _list(self) -> str:
        def objects_and_version() -> tuple[dict[str, Any], str]:
            listed = self.connection.client.list(self.kind, labels=self.labels)
            return {found.metadata.name: found for found in listed}, str(listed.resourceVersion)

        objects, version = self.connection.ask(objects_and_version)
        with self._lock:
            self._objects, self._heard, self._known = objects, time.monotonic(), True
        self._changed.set()
        return version

    def _follow(self) -> None:
        from httpx2 import HTTPError

        while True:
            try:
                version = self._list()
                for change, found in self.connection.client.watch(
                    self.kind, labels=self.labels, resource_version=version
                ):
                    with self._lock:
                        self._take(change, found)
                    self._changed.set()
            except (HTTPError, UserError):  # lists them again
                time.sleep(_AWAY_S)

    def _take(self, change: str, found: Any) -> None:
        objects = dict(self._objects)  # whoever looks has the one before
        if change == "DELETED":
            objects.pop(found.metadata.name, None)
        else:
            objects[found.metadata.name] = found
        self._objects, self._heard = objects, time.monotonic()
