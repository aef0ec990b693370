"""What other estimators say of the same run, term by term."""

from rigsize.peers.answer import TERMS, PeerAnswer
from rigsize.peers.ask import ask_all
from rigsize.peers.ours import our_answer, recorded

__all__ = ["TERMS", "PeerAnswer", "ask_all", "our_answer", "recorded"]
