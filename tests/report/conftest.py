"""Reads pages as a browser would."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Checks that every element is closed in order, and gathers what was seen."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(str(text))  # Markup would escape what it is joined to
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}" if self.open and self.open[-1] == "text" else data

    def all(self, tag, kind=""):
        found = (seen for name, seen in self.tags if name == tag)
        return [seen for seen in found if kind in ["", *seen.get("class", "").split()]]
