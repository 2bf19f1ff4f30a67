"""Server-sent events (WHATWG HTML, section 9.2.6), as far as Triton's `generate_stream` uses them."""

from collections.abc import Iterable, Iterator


def read_events(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each event.

    Comments and fields other than ``data`` are skipped, several data lines of one event are joined, an event that the stream
    cuts short (no empty line after it) is dropped, as the standard says.

    Args:
        lines: the body's lines with their ends; LF and CRLF.
    """
    data: list[str] = []
    for line in lines:
        text = line.rstrip(b"\r\n").decode("utf-8", errors="replace")
        if not text:
            if data:
                yield "\n".join(data)
            data = []
            continue
        name, _, value = text.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
