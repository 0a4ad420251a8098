"""Open, parse and process untrusted files within limits."""

from edgekit.strangers.files import MAX_DEPTH as MAX_DEPTH
from edgekit.strangers.files import MAX_VALUES as MAX_VALUES
from edgekit.strangers.files import open_plain as open_plain
from edgekit.strangers.files import parse_json as parse_json
from edgekit.strangers.files import parse_text as parse_text
from edgekit.strangers.files import read_plain as read_plain
from edgekit.strangers.files import reading as reading
