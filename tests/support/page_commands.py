"""The commands that a page of docs tells its reader to type, so that a drill can type them."""

import re
import textwrap
from pathlib import Path


def chapters(page: Path) -> dict[str, str]:
    """Heading -> its indented blocks, one after the other; chapters without any are left out."""
    found = {}
    for chapter in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = chapter.partition("\n")
        blocks = re.findall(r"(?:^    .*\n)+", body, flags=re.MULTILINE)
        if blocks:
            found[title] = "".join(textwrap.dedent(block) for block in blocks)
    return found
