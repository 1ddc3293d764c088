"""`nightread`, whose decoders hang in films that say so: python -m tests.support.hostile_worker worker."""

from tests.support.hostile import decode_hostile_film
from worker.cli.main import main
from worker.scoring import decoder_pool

if __name__ == "__main__":
    decoder_pool.decode_film = decode_hostile_film  # type: ignore[attr-defined]  # imported there
    decoder_pool.FIRST_TRY_SECONDS = 2.0
    main()
