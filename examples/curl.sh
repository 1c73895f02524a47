#!/bin/sh
# Have image files classified by curl, one after another:  sh curl.sh photo.jpg …
#
# From the environment: TTC_URL, TTC_STREAM, and TTC_TOKEN, which goes through a pipe so that no list
# of processes shows it. What the service refused (429, 503) or found no connection is sent again,
# after as many seconds as Retry-After says. curl's own --retry would do so after lost answers, too,
# and after a 503 of a proxy, which is no problem document: the service may have learned from the
# image already. Needs curl 7.84 or later.
set -eu
url=${TTC_URL:-http://127.0.0.1:8000}/predict?stream=${TTC_STREAM:-curl}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
pause=
trap 'kill $pause 2>/dev/null; exit 143' TERM
trap 'kill $pause 2>/dev/null; exit 130' INT

post() { # FILE → status|what Retry-After says|type of the answer
  printf '%s' "${TTC_TOKEN:+Authorization: Bearer $TTC_TOKEN}" |
    curl --silent --show-error --max-time 60 --header @- --header 'Content-Type: image/jpeg' \
      --data-binary @"$1" --output "$answer" --write-out '%{http_code}|%header{retry-after}|%{content_type}' \
      "$url"
}

for file in "$@"; do
  if [ ! -f "$file" ]; then
    echo "There is no file $file." >&2
    exit 1
  fi
  for try in 1 2 3 4 5; do
    code=0
    told=$(post "$file") || code=$?
    case "$code $told" in
      "0 2"*) break ;;
      "0 429|"*"|application/problem+json"* | "0 503|"*"|application/problem+json"*)
        wait=${told#*|}
        wait=${wait%%|*}
        ;;
      "7 "*) wait= ;; # nothing listens there
      *) try=5 ;;
    esac
    if [ "$try" = 5 ]; then
      cat "$answer" >&2
      exit 1
    fi
    case $wait in '' | *[!0-9]*) wait=$try ;; esac
    sleep "$wait" &
    pause=$!
    wait "$pause" # a signal is heard at once
    pause=
  done
  cat "$answer"
  echo
done
