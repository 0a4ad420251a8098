"""A folder's chat templates, as transformers' AutoTokenizer chooses between its files."""

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
"""Letters of a chat template; the longest published has 20,000."""

MORE = "additional_chat_templates"
"""The folder of named templates beside chat_template.jinja."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST = 32


def read_templates(folder: Folder, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates by their names; the one for a usual conversation is ``default``. Empty where there is none.

    Files win over tokenizer_config.json, as in AutoTokenizer; chat_template.json, which only processors read there, is
    taken where nothing else has a template.

    Raises:
        SourceError: a template is no text or too long, or there are several and none is called default.
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
            f"{folder.path} has the chat templates {', '.join(map(shown, found))}, and none is called 'default'",
            "transformers would ask which one to use; give one of them the name 'default' in tokenizer_config.json",
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
    """The templates of a JSON entry: one text, or named ones in a list or an object.

    Raises:
        SourceError: it is anything else, or a name that could be no file's.
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
            raise fields.error("chat_template", shown(template), f"a template of at most {MAX_TEMPLATE:,} letters")
    return found


def _is_named(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
        return False
    name = entry.get("name")
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
