"""Composed search: bring or pick an image, write what should be different, and see what each model finds.

    python -m tasks serve [--root CLONE] [--port 8091] [--model LABEL=NAME_OR_FOLDER ...]
    make studio                                          of what the last demo published

Serves a clone of the dataset after `python -m tasks pull`: the top results for image and text together, for the image
alone and for the text alone, side by side for the base model and the promoted one; where the query is one of the
version's triplets its target is marked. "Should be first" appends to a file (--feedback), whose lines are items of the
review queue in Airflow's pages where the folder lies beside the deployment's clone (tasks/reviews/searches.py).
The search is exact (tasks/knn/top_k.py). All images are encoded at the first start; the vectors are kept in
<root>/.run/studio. It listens on this machine alone; before --host 0.0.0.0 put a proxy with a login in front.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import subprocess
from pathlib import Path
from typing import Any

from tasks.config import load_params, read_raw
from tasks.config.profiles import SHIPPED
from tasks.errors import ConfigError
from tasks.publish.pull import pull
from tasks.reviews.searches import FEEDBACK
from tasks.store import Store
from tasks.studio.answers import Feedback, Triplets
from tasks.studio.app import Studio, make_app
from tasks.studio.galleries import Gallery, Images, Uploads, model_folders

MAX_UPLOAD_BYTES = 20 * 2**20
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks serve`."""
    parser.add_argument("--origin", help="the dataset's repository: --root becomes, or is brought up to, a clone of it")
    parser.add_argument("--root", type=Path, default=Path(), help="a clone of the dataset (default: this folder)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8091, help="TCP port (default 8091); 0 takes a free one")
    parser.add_argument("--allow-host", action="append", default=[], help="a host name that people open it by")
    parser.add_argument(
        "--model", action="append", default=[], help="LABEL=NAME_OR_FOLDER (default: the version's base and promoted)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--feedback", type=Path, help="answers for review (default: <root>/.run/search_feedback.jsonl)")


def bring_clone(origin: str, clone: Path) -> None:
    """Make a folder a clone of a dataset's newest version, or bring it up to it, with its data and models.

    Args:
        origin: address or folder of the repository.
        clone: the folder; it may be missing.
    Raises:
        ConfigError: git cannot clone or update it.
        DataError: the remote does not hold what was published.
    """
    if (clone / ".git").exists():
        command = ["git", "-C", str(clone), "pull", "-q", "--ff-only"]
    else:
        command = ["git", "clone", "-q", "--branch", "dataset", "--", origin, str(clone)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ConfigError(
            f"serve: {origin}: {ended.stderr.strip() or 'git failed'}; expected the repository of a published dataset, "
            "such as .demo/origin.git after `make demo`"
        )
    pull(clone, ["-q"])


def make_studio(args: argparse.Namespace) -> Studio:
    """Read the version and encode what is not encoded yet.

    Raises:
        ConfigError: no clone of a dataset, or no such model.
        DataError: the version's data is not pulled.
    """
    root: Path = args.root
    if not (root / "params.yaml").exists():
        raise ConfigError(f"{root / 'params.yaml'}: missing; expected a clone of the dataset's branch at --root")
    # The version may be of an older release, so only what is needed of its parameters is read.
    base_model = str((read_raw(root / "params.yaml").get("train") or {}).get("base_model") or "")
    store = Store(root)
    images = Images(store, Uploads(load_params(SHIPPED / "params.yaml")))
    models = model_folders(base_model, store, args.model)
    folder = root / ".run" / "studio"
    galleries = [Gallery(label, model, images, folder, args.device) for label, model in models.items()]
    version = version_name(root)
    feedback = Feedback(args.feedback or root / ".run" / FEEDBACK, version)
    return Studio(version, images, galleries, models, Triplets(store), feedback, MAX_UPLOAD_BYTES)


def version_name(root: Path) -> str:
    """The version that a clone holds, by its version.json; "unpublished" where there is none."""
    path = root / "version.json"
    return str(json.loads(path.read_text())["version"]) if path.exists() else "unpublished"


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is ended.

    Raises:
        ConfigError: no clone, no such model, or an address that cannot be listened on.
        DataError: the version's data is not pulled.
    """
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.origin:
        bring_clone(args.origin, args.root)
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.host, args.port))
        except OSError as error:
            raise ConfigError(
                f"serve: {args.host}:{args.port} cannot be listened on: {error}; expected a free port; choose --port"
            ) from error
        studio = make_studio(args)
        port = listener.getsockname()[1]
        app = make_app(studio, [*LOCAL, args.host, *args.allow_host])
        print(f"composed search of {studio.version}: http://{args.host}:{port}", flush=True)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])
        finally:
            studio.images.uploads.close()
    return {}
