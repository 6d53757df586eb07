"""Text: the tokenizer, the incremental detokenizer, stop strings and chat templates. No torch here."""

from byhand.text.detokenizer import Detokenizer
from byhand.text.stop import StopStrings
from byhand.text.template import ChatTemplate
from byhand.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopStrings", "Tokenizer"]
