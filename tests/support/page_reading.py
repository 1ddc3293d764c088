"""Reads the morning page as a browser would, far enough to hold it to its promises."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "path", "rect"}  # the elements on the page that have no end; path and rect end themselves


class Page(HTMLParser):
    """Elements, text and what they refer to; raises AssertionError where elements are not nested properly."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def of(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """The attributes of every element with this name and these attributes (class_ for class)."""
        pairs = {name.rstrip("_"): value for name, value in wanted.items()}
        return [attrs for name, attrs in self.elements if name == tag and pairs.items() <= attrs.items()]

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]

    @property
    def references(self) -> set[str]:
        """Every id that something on the page points to."""
        links = {(attrs["href"] or "").removeprefix("#") for attrs in self.of("a")}
        return links | {attrs["aria-labelledby"] or "" for _, attrs in self.elements if "aria-labelledby" in attrs}

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())
