"""The blind share: studies that are listed as if no model had scored them, so that ranking can be judged and unlearnt.

What a model ranks first is read first, and read with its word in mind; labels and waiting times from such studies alone
would praise the model for its own work. docs/background/reading-order.md says what a share costs.
"""

import hashlib
import hmac
from dataclasses import dataclass

SCALE = 2**64


@dataclass(frozen=True)
class Blinding:
    """A share of studies, 0 to 1, and the site's secret (hex) that draws them."""

    share: float
    secret: str

    def draws(self, study_instance_uid: str) -> bool:
        """Whether this study is blind: by its UID alone, so that no second scoring draws again and nobody can guess.

        A larger share holds every study of a smaller one.
        """
        # The same secret makes the patients' keys, of texts with one such separator: no key can be this one's.
        message = f"\x1fblind\x1f{study_instance_uid}".encode()
        digest = hmac.new(bytes.fromhex(self.secret), message, hashlib.sha256).digest()
        return int.from_bytes(digest[:8], "big") < self.share * SCALE
