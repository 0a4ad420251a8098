"""Policies as TOML: what is read, and how each contradiction is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.routing.policy_file import load_policy
from edgekit.types.routing import AnswerRules, Bounds, Budget, Policy, Price, Privacy, PrivacyRule, Unknown

EXAMPLE = Path(__file__).parents[1] / "examples" / "routing" / "policy.toml"
TIER = """
[[tier]]
name = "cloud"
trust = "third-party"
url = "https://api.example.com/v1"
model = "m"
"""
PRICED = TIER + "price = { input_per_million = 1, output_per_million = 2.5 }\n"


def read(folder: Path, text: str, name: str = "policy.toml") -> Policy:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def refusal(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    assert str(folder / "policy.toml") in caught.value.message
    assert caught.value.hint
    return caught.value


def test_the_example_holds_every_key_and_four_tiers() -> None:
    policy = load_policy(EXAMPLE)
    assert policy.name == "example"
    assert [tier.name for tier in policy.tiers] == ["edge-box", "private-cloud", "standard", "premium"]
    assert [rule.name for rule in policy.privacy.rules] == ["health", "e-mail address"]
    assert policy.device.languages == {"en"}
    assert policy.bounds == Bounds(5.0, 30.0, 20.0, 85.0, 200_000_000)
    assert policy.budget == Budget(0.05, 2.0, "USD")
    assert policy.answers == AnswerRules(most_wrong=0.3)
    assert policy.tiers[1].key_file.endswith("/.config/edgekit/private-cloud.key")
    assert "~" not in policy.tiers[1].key_file
    text = EXAMPLE.read_text(encoding="utf-8")
    from edgekit.routing import policy_file

    keys = {key for name in vars(policy_file) if name.endswith("_KEYS") for key in getattr(policy_file, name)}
    assert [key for key in keys if key not in text] == []


def test_an_empty_file_is_a_policy_that_stays_on_the_device(tmp_path: Path) -> None:
    assert read(tmp_path, "", "mine.toml") == Policy("mine")


def test_every_key_is_read(tmp_path: Path) -> None:
    policy = read(
        tmp_path,
        'name = "n"\nshow = "prefix"\nlast_resort = "refuse"\n'
        '[privacy]\nceiling = "private"\n[[privacy.rule]]\nname = "r"\nmatch = "secret"\nceiling = "device"\n'
        '[unknown]\nlatency = "cloud"\nquality = "cloud"\n'
        "[answers]\nmost_wrong = 0\nprefix = true\ncut_off = false\nrepetition = false\n"
        "[budget]\nper_day = 3\ncurrency = 'EUR'\n" + PRICED + 'key_file = "keys/k"\ntokenizer = "/t.json"\n'
        "context = 100\nmax_output = 50\ncount_margin = 0\ncan = ['tools']\nlanguages = ['fi', 'sv']\n"
        "seconds_to_first = 0.5\ntokens_per_second = 80\ndeadline = 9\nretries = 0\n",
    )
    assert (policy.name, policy.show, policy.last_resort) == ("n", "prefix", "refuse")
    assert policy.privacy == Privacy("private", (PrivacyRule("r", "secret", "device"),))
    assert policy.unknown == Unknown(latency="cloud", quality="cloud")
    assert policy.answers == AnswerRules(0.0, True, False, False)
    assert policy.budget == Budget(None, 3.0, "EUR")
    (tier,) = policy.tiers
    assert tier.price == Price(1.0, 2.5)
    assert (tier.key_file, tier.tokenizer) == (str(tmp_path / "keys/k"), "/t.json")
    assert (tier.context, tier.max_output, tier.count_margin, tier.retries) == (100, 50, 0.0, 0)
    assert (tier.can, tier.languages) == ({"tools"}, {"fi", "sv"})
    assert (tier.seconds_to_first, tier.tokens_per_second, tier.deadline, tier.stall) == (0.5, 80.0, 9.0, 9.0)


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy file .* not found"):
        load_policy(tmp_path / "absent.toml")
    assert "not valid TOML" in refusal(tmp_path, "name = ").message
    (tmp_path / "policy.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shows = 'checked'", "unknown key 'shows'"),
        ("show = 'prefx'", "must be one of checked, prefix, at-once"),
        ("last_resort = 'cloud'", "must be one of answer, refuse"),
        ("[privacy]\nceilling = 'device'", "unknown key 'privacy.ceilling'"),
        ("[privacy]\nceiling = 'nobody'", "must be one of device, private, third-party"),
        ("[bounds]\nleast_battery = 120", "a number between 0 and 100"),
        ("[bounds]\nseconds = 0", "a number above 0"),
        ("[bounds]\nseconds = inf", "bounds.seconds"),
        ("[bounds]\nmost_celsius = nan", "most_celsius"),
        ("[bounds]\nfree_memory = 1.5", "a whole number"),
        ("[answers]\nmost_wrong = 1.5", "a number between 0 and 1"),
        ("[answers]\nmost_wrong = true", "a number between 0 and 1"),
        ("[unknown]\nlatency = 'away'", "must be one of local, cloud"),
        ("[device]\nlanguages = ['eng']", "ISO 639-1"),
        ("[device]\ncan = ['tools']", "the device does not support tools"),
        ("[budget]\nper_request = 2\nper_day = 1" + PRICED, "per_request (2) is above budget.per_day (1)"),
        ("show = 'prefix'\n[answers]\nprefix = false", "answers.prefix is false"),
        ("[unknown]\nbattery = 'cloud'", "there is no tier"),
        ("[budget]\nper_day = 1", "no tier to spend it on"),
        ("[bounds]\nseconds = 3", "has no effect without a tier"),
        ("[budget]\nper_day = 1" + TIER, "tier 'cloud' has no price"),
        (TIER + TIER, "two tiers are called 'cloud'"),
        (TIER.replace('"cloud"', '"device"'), "the name of this machine"),
        (TIER.replace('"cloud"', '"a b"'), "letters, digits"),
        (TIER.replace("third-party", "device"), "it is another program"),
        (TIER.replace("third-party", "friend"), "must be one of private, third-party"),
        (TIER.replace('model = "m"', ""), "'tier[0].model' is missing"),
        (TIER.replace('model = "m"', 'model = " "'), "'tier[0].model' must be some text"),
        (TIER.replace("url =", "uri ="), "unknown key 'tier[0].uri'"),
        (TIER.replace("https://", "ftp://"), "is not an http or https URL"),
        (TIER.replace("https://api.example.com/v1", "api.example.com"), "is not an http or https URL"),
        (TIER.replace("https://api", "https://[api"), "is not a URL"),
        (TIER.replace("api.example.com", "api.example.com:99999"), "is not a URL"),
        (TIER.replace("https://", "http://"), "unencrypted"),
        (TIER + "key_env = 'A'\nkey_file = 'b'", "both key_env and key_file"),
        (TIER + "price = { input_per_million = 1 }", "output_per_million' is missing"),
        (TIER + "price = { input_per_million = -1, output_per_million = 1 }", "a number of at least 0"),
        (TIER + "context = 0", "at least 1"),
        (TIER + "deadline = 5\nstall = 6", "stall (6 s) is above"),
        (TIER + "retries = 1000", "tier[0].retries"),
        (TIER + "can = ['dance']", "a list of tools, images, json-schema"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text).message


def test_an_unknown_key_suggests_the_known_one(tmp_path: Path) -> None:
    assert "did you mean 'context'?" in refusal(tmp_path, TIER + "contxt = 5").hint


@pytest.mark.parametrize("secret", ["sk-live-123", "abc def"])
def test_what_may_be_a_key_is_never_shown(tmp_path: Path, secret: str) -> None:
    for text in (
        TIER + f"key_env = '{secret}'",
        TIER.replace("https://", f"https://user:{secret}@"),
        TIER.replace("/v1", f"/v1?key={secret}"),
        TIER.replace("/v1", f"/v1#{secret}"),
        TIER.replace("https://api.example.com/v1", secret),
    ):
        error = refusal(tmp_path, text)
        assert secret not in error.message + error.hint


def test_plain_http_goes_to_this_machine_and_to_ones_own(tmp_path: Path) -> None:
    for host in ("localhost:8080", "127.0.0.1", "[::1]:9"):
        text = TIER.replace("https://api.example.com", f"http://{host}")
        assert read(tmp_path, text).tiers[0].url == f"http://{host}/v1"
    box = TIER.replace("https://api.example.com", "http://box.lan").replace("third-party", "private")
    assert read(tmp_path, box).tiers[0].url == "http://box.lan/v1"
    assert "unencrypted" in refusal(tmp_path, TIER.replace("https://api", "http://localhost")).message


RULE = "[[privacy.rule]]\nname = 'r'\nmatch = {}\nceiling = '{}'\n"


@pytest.mark.parametrize(
    ("ceiling", "pattern", "rule", "said"),
    [
        ("third-party", "'('", "device", "is not a regular expression"),
        ("third-party", "''", "device", "matches every text"),
        ("third-party", "'a*'", "device", "matches every text"),
        ("third-party", "'a(?=b)'", "device", "is not a regular expression: invalid perl operator: (?="),
        ("third-party", r"'(a)\1'", "device", "is not a regular expression: invalid escape sequence"),
        ("third-party", "'a{2000}'", "device", "is not a regular expression: invalid repetition size"),
        ("third-party", "'x'", "third-party", "has no effect"),
        ("device", "'x'", "private", "allows private, and the ceiling of all requests is device"),
    ],
)
def test_rules_that_cannot_work(tmp_path: Path, ceiling: str, pattern: str, rule: str, said: str) -> None:
    text = f"[privacy]\nceiling = '{ceiling}'\n" + RULE.format(pattern, rule)
    assert said in refusal(tmp_path, text).message


def test_two_rules_of_one_name(tmp_path: Path) -> None:
    assert "two rules are called 'r'" in refusal(tmp_path, 2 * RULE.format("'x'", "device")).message


def test_tiers_stand_from_the_cheapest_on(tmp_path: Path) -> None:
    dear = PRICED.replace('"cloud"', '"dear"').replace("2.5", "9")
    unpriced = TIER.replace('"cloud"', '"own"')
    message = refusal(tmp_path, dear + unpriced.replace("own", "o") + PRICED).message
    assert "tier 'dear' is listed before 'cloud' and costs more: 0.01 and 0.0035" in message
    assert len(read(tmp_path, PRICED + unpriced + dear).tiers) == 3


def test_what_contradicts_without_tiers_is_fine_beside_one_or_with_a_refusal(tmp_path: Path) -> None:
    assert read(tmp_path, "last_resort = 'refuse'\n[bounds]\nleast_battery = 20").bounds.least_battery == 20
    assert read(tmp_path, "[bounds]\nseconds = 3\n[unknown]\nlatency = 'cloud'" + TIER).unknown.latency == "cloud"
    # A request may lift the ceiling: tiers above it can be reached.
    assert read(tmp_path, "[privacy]\nceiling = 'device'" + TIER).privacy.ceiling == "device"
