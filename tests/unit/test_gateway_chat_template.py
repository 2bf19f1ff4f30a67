"""Chat templates, as checkpoints carry them."""

import asyncio
import json
from pathlib import Path

import pytest

from drafthouse.core.errors import DrafthouseError
from drafthouse_client.gateway.chat_template import ChatTemplate, read_template
from drafthouse_client.gateway.requests import ChatBody
from drafthouse_client.gateway.settings import GatewaySettings
from drafthouse_client.gateway.translate import Translator
from drafthouse_client.gateway.vocabulary import Vocabulary
from fakes.gateway_server import TOKENIZER

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <b>"}]
CHATML = """{{ bos_token }}{% for message in messages %}
    {% if loop.index > 9 %}{% break %}{% endif %}
<|im_start|>{{ message['role'] }}
{% generation %}{{ message['content'] }}{% endgeneration %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
RENDERED = "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"


def write(folder: Path, config: dict[str, object], template: str | None = None) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("bos", ["<s>", {"content": "<s>", "lstrip": False}])
def test_a_template_of_the_configuration(tmp_path: Path, bos: object) -> None:
    template = read_template(write(tmp_path, {"chat_template": CHATML, "bos_token": bos, "model_max_length": 3}))
    assert template.render(MESSAGES) == RENDERED
    assert not template.is_default


def test_several_named_templates_and_a_file_of_its_own(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    assert read_template(write(tmp_path, {"chat_template": named, "bos_token": "<s>"})).render(MESSAGES) == RENDERED
    assert read_template(write(tmp_path, {"chat_template": named}, "{{ messages | length }}")).render(MESSAGES) == "2"


def test_without_a_template_the_texts_are_joined(tmp_path: Path) -> None:
    template = read_template(tmp_path)
    assert template.is_default
    assert template.render(MESSAGES) == "Be kind.\nHi <b>"


def test_the_helpers_that_templates_use() -> None:
    assert ChatTemplate("{{ {'é': [1]} | tojson }}").render(MESSAGES) == '{"é": [1]}'
    assert len(ChatTemplate("{{ strftime_now('%Y') }}").render(MESSAGES)) == 4


def test_what_a_template_refuses_is_the_messages_fault() -> None:
    with pytest.raises(DrafthouseError, match=r"^INVALID_ARG field=messages .*only two"):
        ChatTemplate("{{ raise_exception('only two') }}").render(MESSAGES)


def test_a_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(DrafthouseError, match="field=messages"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(MESSAGES)
    with pytest.raises(DrafthouseError, match="field=messages"):
        ChatTemplate("{{ messages.append(1) }}").render(MESSAGES)


def test_a_template_that_does_not_compile_is_refused_at_the_start() -> None:
    with pytest.raises(DrafthouseError, match="field=chat_template"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize("repeated", [1, 2000])
def test_a_rendered_template_is_sent_as_ids_without_further_special_tokens(repeated: int) -> None:
    vocabulary = Vocabulary(TOKENIZER)
    translator = Translator(GatewaySettings(), vocabulary, ChatTemplate("{{ messages[0].content }}!"))
    body = ChatBody.model_validate({"model": "cosine", "messages": [{"role": "user", "content": "Hi." * repeated}]})
    plan = asyncio.run(translator.chat(body))
    prompt = plan.asks[0].prompt
    assert not isinstance(prompt, str)
    assert b"".join(vocabulary.token_bytes(token) for token in prompt).decode() == "Hi." * repeated + "!"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DrafthouseError, match=r"field=tokenizer .*tokenizer\.json"):
        Vocabulary(tmp_path)
