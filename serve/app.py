"""The server of the page: pictures come in, go through memory, and go out; nothing is kept.

Werkzeug's own threaded server does: it listens on the loopback address only, for the few requests
of the person at this computer, and nothing else has to be installed.
"""

import io
import logging
import select
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from flask import Flask, Response, abort, render_template, request
from jinja2 import FileSystemLoader
from werkzeug.exceptions import ClientDisconnected, HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

from imaging.enlarge import bicubic_only, enlarge
from imaging.kinds import PictureError, TooLarge, by_content, saved_suffix
from imaging.photo import open_photo
from runtime.errors import RunError, first_line, lack_of_memory, printable

if TYPE_CHECKING:
    from inference.upscaler import Upscaler

HOST = "127.0.0.1"
HERE = Path(__file__).parent
MOST_BYTES = 32 * 2**20
MOST_PIXELS = 50_000_000  # of a result: about 0.7 GB of memory
MOST_WAITING = 8  # requests beside the one in work; their pictures wait in memory
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp"}
TYPES["AVIF"] = "image/avif"
KINDS = "PNG, JPEG, WebP, AVIF, BMP or GIF"  # GIF comes back as PNG
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Handler(WSGIRequestHandler):
    """Gives up a browser from which nothing has come for a minute, and with it its place."""

    timeout = 60

    def log_error(self, text: str, *values: object) -> None:
        """Leave out what this does to the connections that browsers keep at hand."""
        if not text.startswith("Request timed out"):
            super().log_error(text, *values)


def create_app(upscalers: "dict[int, Upscaler]") -> Flask:
    """Build the application.

    `GET /` is the page. `POST /enlarge/<scale>/<srcnn|bicubic>?name=<file name>` takes the bytes
    of a picture and returns those of the enlarged one, or a sentence and a 4xx or 503 status.
    Requests must name this host (against DNS rebinding) and come from this page.

    Args:
        upscalers: by scale.
    """
    app = Flask(__name__)
    app.jinja_loader = FileSystemLoader([HERE, HERE.parent / "report"])  # shares the slider
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, TRUSTED_HOSTS=[HOST, "localhost"])
    places, turn = threading.BoundedSemaphore(MOST_WAITING + 1), threading.Lock()

    @app.get("/")
    def page() -> str:
        limits = {"kinds": KINDS, "most_bytes": MOST_BYTES, "most_pixels": MOST_PIXELS}
        return render_template("upload.html", scales=sorted(upscalers), **limits)

    @app.post("/enlarge/<int:scale>/<any(srcnn, bicubic):method>")
    def enlarged(scale: int, method: str) -> Response:
        origin = request.host_url.rstrip("/")
        if request.headers.get("Origin", origin) != origin:
            abort(403, "This page takes pictures from itself only.")
        if scale not in upscalers:
            abort(404, f"There are no weights for ×{scale}.")
        if not places.acquire(blocking=False):
            _drain()
            abort(503, "Too many pictures are waiting; try again in a minute.")
        try:
            data = request.get_data(cache=False)
            with turn:  # one at a time, as it uses every core and much memory
                return _enlarged(data, request.args.get("name", ""), upscalers[scale], method)
        except HTTPException:
            raise
        except Exception as error:  # whatever a picture does to a decoder or to torch
            if lack_of_memory(error):
                abort(503, "There is not enough memory for this picture.")
            abort(422, f"{_name()} was not taken: {first_line(error)}.")
        finally:
            places.release()

    @app.errorhandler(HTTPException)
    def sentence(error: HTTPException) -> Response:
        text = error.description
        if error.code == 413:
            text = f"{_name()} is larger than {MOST_BYTES // 2**20} MB; python upscale.py takes it."
        return Response(text, error.code, mimetype="text/plain")

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(SECURITY)
        return response

    return app


def serve(upscalers: "dict[int, Upscaler]", port: int) -> None:
    """Serve the page until Ctrl-C.

    Args:
        upscalers: by scale.
        port: of the loopback address; 0 for any free one.

    Raises:
        RunError: the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        why = first_line(error)
        raise RunError(f"cannot listen on port {port}: {why}; name another --port") from None
    port = listener.getsockname()[1]
    app = create_app(upscalers)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line per request
    server = make_server(
        HOST, port, app, threaded=True, request_handler=Handler, fd=listener.fileno()
    )
    print(f"http://{HOST}:{port}/ is the page, for this computer only; Ctrl-C ends it")
    with listener:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            for upscaler in upscalers.values():
                upscaler.stop()


def _enlarged(data: bytes, name: str, upscaler: "Upscaler", method: str) -> Response:
    kind = by_content(data)
    if kind in ("TIFF", "HEIF"):
        raise PictureError(f"browsers do not show {kind}; python upscale.py enlarges it")
    if data and kind is None:
        raise PictureError(f"not a picture of one of these kinds: {KINDS}")
    start = time.perf_counter()
    most_pixels = MOST_PIXELS // upscaler.scale**2
    try:
        photo = open_photo(io.BytesIO(data), name, upscaler.scale, most_pixels)
    except TooLarge as error:
        raise PictureError(f"{error}; python upscale.py takes larger ones") from None
    if method == "srcnn":
        image = upscaler.enlarge(photo, _look_for_browser)
    else:
        image = enlarge(photo.image, upscaler.scale, bicubic_only, radius=0)
    file = io.BytesIO()
    photo.save(image, file)
    response = Response(file.getvalue(), mimetype=TYPES[photo.format])
    response.headers["X-Seconds"] = f"{time.perf_counter() - start:.2f}"
    response.headers["X-Suffix"] = saved_suffix(name, data)
    response.headers["X-Note"] = quote(photo.note)
    return response


def _look_for_browser(_pixels: int) -> None:
    """Raise ClientDisconnected where nobody waits for the answer any more."""
    connection = request.environ.get("werkzeug.socket")
    readable = select.select([connection], [], [], 0)[0] if connection else []
    if any(not each.recv(1, socket.MSG_PEEK) for each in readable):
        raise ClientDisconnected


def _name() -> str:
    """Return what messages call the file that was sent."""
    return printable(request.args.get("name", "")) or "The picture"


def _drain() -> None:
    """Read what the browser sends, without keeping it: it listens only afterwards."""
    while request.stream.read(2**16):
        pass
