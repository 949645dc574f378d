"""Which model a server has: asked before it is used, and the same one for a whole run.

A server says in GET /v1/models which weights (`root`) answer under a name. The first answer in a run is kept in the
run's folder, so that a server that comes back with other weights is noticed by the next stage, part or try as well.
Servers without GET /models are trusted; their replies name the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from tasks.errors import ConfigError
from tasks.models.llm.completions import BUSY, Answer, RetryableError
from tasks.models.llm.replicas import Replica


class ServedIdentity:
    """The model behind a name, as its servers report it.

    Attributes:
        name: the served model's name.
        root: its weights: a folder or a repository; empty until a server said so.
    """

    def __init__(self, name: str, get: Callable[[str, float], Answer], folder: Path | None) -> None:
        """Nothing is requested yet.

        Args:
            name: the served model's name.
            get: URL and timeout in s -> answer.
            folder: where a run keeps the first answer; None to keep it in this process alone.
        """
        self.name, self._get, self._lock = name, get, threading.Lock()
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._path = folder / f"{digest}.json" if folder else None
        self.root = self._read_kept()

    def key(self) -> dict[str, str]:
        """What the weights add to a cache key: nothing where they are what the name says."""
        return {"root": self.root} if self.root not in ("", self.name) else {}

    def engine_version(self, url: str) -> str:
        """The engine's name, with the server's version where it reports one (vLLM: GET /version beside /v1)."""
        import httpx

        try:
            answer = self._get(url.removesuffix("/v1") + "/version", 5.0)
            return f"openai, vllm {json.loads(answer.content)['version']}" if answer.status == 200 else "openai"
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "openai"

    def verify(self, replica: Replica) -> None:
        """Make sure that the server has our model, and the same one as all servers of this run so far.

        Raises:
            ConfigError: it has another one.
            RetryableError: it is busy or failing.
        """
        with replica.lock:
            if replica.is_verified:
                return
            served = self._served_models(replica.url)
            if served is not None:
                if self.name not in served:
                    raise ConfigError(
                        f"{replica.url}: serves {sorted(served)}, not '{self.name}'; start it with that model, or "
                        "change the parameter"
                    )
                self._require_same(replica.url, served[self.name])
            replica.is_verified = True

    def _require_same(self, url: str, root: str) -> None:
        with self._lock:
            if not self.root:
                self.root = self._keep(root)
            if root != self.root:
                kept = f", or remove {self._path} and what was written with the old one" if self._path else ""
                raise ConfigError(
                    f"{url}: '{self.name}' is {root} there now and was {self.root}; one run has one model: start the "
                    f"same one again, or start the run anew{kept}"
                )

    def _served_models(self, url: str) -> dict[str, str] | None:
        """Served model name -> its root; None where the server does not report it."""
        answer = self._get(f"{url}/models", 30.0)
        if answer.status in BUSY or (answer.status >= 500 and answer.status != 501):
            raise RetryableError(f"GET /models: {answer.status}")
        if answer.status != 200:
            return None
        try:
            return {str(m["id"]): str(m.get("root") or m["id"]) for m in json.loads(answer.content)["data"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    # --- the run's memory ---

    def _read_kept(self) -> str:
        try:
            return str(json.loads(self._path.read_text(encoding="utf-8"))["root"]) if self._path else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _keep(self, root: str) -> str:
        """Store the weights' name unless another process was first; what is stored then."""
        if self._path is None:
            return root
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        temporary.write_text(json.dumps({"model": self.name, "root": root}), encoding="utf-8")
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return self._read_kept() or root
        except OSError:  # a file system without hard links
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        return root
