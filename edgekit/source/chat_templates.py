"""Read a folder's chat templates, with the precedence of files that transformers' AutoTokenizer uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.fields import Fields, shown
from edgekit.strangers import parse_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.source.folder import Folder

MAX_TEMPLATE = 1 << 20
"""Most characters of a chat template; the longest published has 20,000."""

MORE = "additional_chat_templates"
"""The folder of named templates next to chat_template.jinja."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST = 32


def read_templates(folder: Folder, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; the one for ordinary conversations is ``default``. Empty if there are none.

    Files win over tokenizer_config.json, as in AutoTokenizer. chat_template.json, which in transformers only
    processors read, is the last resort.

    Raises:
        SourceError: a template is not text or too long, or there are several and none is called default.
    """
    found = {name: _read(folder, file) for name, file in _files(folder).items()}
    if not found:
        found = listed_templates(settings.get("chat_template"), str(folder.path / "tokenizer_config.json"))
    if not found and folder.has("chat_template.json"):
        where = str(folder.path / "chat_template.json")
        found = listed_templates(folder.read_json("chat_template.json").get("chat_template"), where)
    if len(found) == 1 and "default" not in found:
        found = {"default": next(iter(found.values()))}
    if found and "default" not in found:
        raise SourceError(
            f"{folder.path} has the chat templates {', '.join(map(shown, found))}, but none is called 'default'",
            "name one of them 'default' in tokenizer_config.json",
        )
    return found


def _files(folder: Folder) -> dict[str, str]:
    files = {"default": "chat_template.jinja"} if folder.has("chat_template.jinja") else {}
    for file in folder.names_in(MORE):
        name = file.removesuffix(".jinja")
        if file.endswith(".jinja") and _NAME.fullmatch(name) and len(files) < _MOST:
            files.setdefault(name, f"{MORE}/{file}")
    return files


def _read(folder: Folder, file: str) -> str:
    return parse_text(folder.read(file), str(folder.path / file), error=SourceError)


def listed_templates(value: object, where: str) -> dict[str, str]:
    """The templates of a JSON entry: one string, or named ones in a list or an object.

    Raises:
        SourceError: it is anything else, or a name that cannot be a file name.
    """
    fields = Fields({"chat_template": value}, where)
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if _is_named(entry)}
        if len(named) != len(value) or len(named) > _MOST:
            raise fields.error("chat_template", value, "a template, or a list of templates with different names")
        found = named
    else:
        found = {} if value is None else {"default": value}
    for template in found.values():
        if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
            raise fields.error("chat_template", shown(template), f"a template of at most {MAX_TEMPLATE:,} characters")
    return found


def _is_named(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
        return False
    name = entry.get("name")
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
