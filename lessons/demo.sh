#!/bin/sh
# The lesson in four commands, each shown before it runs. `make demo` calls this.
set -eu
PROMPT="A list of colors: red"

show() {
    printf '\n\033[1m# %s\033[0m\n$ byhand' "$1"
    shift
    for word in "$@"; do
        case $word in *" "*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    byhand "$@"
}

show "The prompt is a list of token ids." tokenize "$PROMPT"
show "One pass over it predicts a token after EVERY position." read "$PROMPT"
show "Decoding: the last prediction is appended, and again, until the model says it is the end." \
    run "$PROMPT" --steps --max-tokens 40
show "The proof: transformers' generate gives the same tokens." verify "$PROMPT" "Once upon a time"
