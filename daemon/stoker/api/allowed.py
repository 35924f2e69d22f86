"""The fields that each route passes to the engine, with ranges, and those it refuses. Data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stoker.api.checks import (
    MAX_ITEMS,
    Check,
    an_object,
    biases,
    choice,
    flag,
    flag_or_count,
    grammar,
    items,
    number,
    one_of,
    prompt,
    schema,
    stops,
    template_kwargs,
    text,
    text_or_items,
    tokens,
    tools,
    whole,
)

MAX_NODES: Final = 2_000_000  # values in one body; bounds the time that it costs
LONGEST_NAME: Final = 300
_MAX_TOKENS: Final = 2**31 - 1
_MAX_CHOICES: Final = 64

_LIMIT: Final = whole(-1, _MAX_TOKENS)  # -1 is llama.cpp's word for "until it ends"
_SAMPLING: Final[dict[str, Check]] = {
    "temperature": number(0, 10),
    "top_p": number(0, 1),
    "top_k": whole(-1, 1_000_000),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "top_n_sigma": number(-1, 100),
    "xtc_probability": number(0, 1),
    "xtc_threshold": number(0, 1),
    "dynatemp_range": number(0, 10),
    "dynatemp_exponent": number(0, 10),
    "presence_penalty": number(-10, 10),
    "frequency_penalty": number(-10, 10),
    "repeat_penalty": number(0, 10),
    "repeat_last_n": whole(-1, 1_000_000),
    "dry_multiplier": number(0, 100),
    "dry_base": number(0, 100),
    "dry_allowed_length": whole(0, 1_000_000),
    "dry_penalty_last_n": whole(-1, 1_000_000),
    "mirostat": whole(0, 2),
    "mirostat_tau": number(0, 100),
    "mirostat_eta": number(0, 10),
    "seed": whole(-(2**63), 2**64 - 1),
    "logit_bias": biases,
    "ignore_eos": flag,
    "min_keep": whole(0, 1_000_000),
    "grammar": grammar,
    "json_schema": schema,
    "cache_prompt": flag,
    "n_predict": _LIMIT,
    "max_tokens": _LIMIT,
    "stop": stops,
    "timings_per_token": flag,
    "return_progress": flag,
    "t_max_predict_ms": whole(-1, 86_400_000),
}
_TOOLS: Final[dict[str, Check]] = {
    "tools": tools,
    "tool_choice": choice,
    "parallel_tool_calls": flag,
}
_TEMPLATE: Final[dict[str, Check]] = {
    "chat_template_kwargs": template_kwargs,
    "reasoning_format": one_of("auto", "none", "deepseek", "deepseek-legacy"),
    "reasoning_effort": text(LONGEST_NAME),
    "thinking_budget_tokens": _LIMIT,
    "add_generation_prompt": flag,
    "continue_final_message": flag,
}
_CHAT: Final[dict[str, Check]] = {
    **_SAMPLING,
    **_TOOLS,
    **_TEMPLATE,
    "messages": items(MAX_ITEMS),
    "stream": flag,
    "stream_options": an_object,
    "max_completion_tokens": _LIMIT,
    "n": whole(1, _MAX_CHOICES),
    "logprobs": flag,
    "top_logprobs": whole(0, 20),
    "response_format": schema,
}
_COMPLETION: Final[dict[str, Check]] = {
    **_SAMPLING,
    "prompt": prompt,
    "suffix": text(1_000_000),
    "stream": flag,
    "stream_options": an_object,
    "n": whole(1, _MAX_CHOICES),
    "logprobs": flag_or_count,
    "echo": flag,
    "n_probs": whole(0, 100),
    "response_format": schema,
}
_EMBEDDINGS: Final[dict[str, Check]] = {
    "input": prompt,
    "encoding_format": one_of("float", "base64"),
    "dimensions": whole(1, 1_000_000),
    "embd_normalize": whole(-1, 1_000_000),
}
_RESPONSES: Final[dict[str, Check]] = {
    **_SAMPLING,
    **_TOOLS,
    "input": text_or_items,
    "instructions": text(100_000_000),
    "stream": flag,
    "max_output_tokens": _LIMIT,
    "text": schema,
    "reasoning": an_object,
    "include": lambda name, value: value if value == [] else items(MAX_ITEMS)(name, value),
    "chat_template_kwargs": template_kwargs,
}
_MESSAGES: Final[dict[str, Check]] = {
    "messages": items(MAX_ITEMS),
    "system": text_or_items,
    "max_tokens": whole(1, _MAX_TOKENS),
    "stop_sequences": stops,
    "stream": flag,
    "temperature": number(0, 10),
    "top_p": number(0, 1),
    "top_k": whole(-1, 1_000_000),
    "tools": tools,
    "tool_choice": choice,
    "thinking": an_object,
    "metadata": an_object,
    "chat_template_kwargs": template_kwargs,
}
_RERANK: Final[dict[str, Check]] = {
    "query": text(1_000_000),
    "documents": items(MAX_ITEMS),
    "texts": items(MAX_ITEMS),
    "top_n": whole(1, MAX_ITEMS),
    "return_text": flag,
}
_TOKENIZE: Final[dict[str, Check]] = {
    "content": text(100_000_000),
    "add_special": flag,
    "parse_special": flag,
    "with_pieces": flag,
}
_DETOKENIZE: Final[dict[str, Check]] = {"tokens": tokens}
_APPLY: Final[dict[str, Check]] = {
    **_TOOLS,
    **_TEMPLATE,
    "messages": items(MAX_ITEMS),
    "response_format": schema,
}

ALLOWED: Final[Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]]] = {
    # path: (fields, those that must be there)
    "/v1/chat/completions": (_CHAT, ("messages",)),
    "/v1/completions": (_COMPLETION, ("prompt",)),
    "/v1/embeddings": (_EMBEDDINGS, ("input",)),
    "/v1/responses": (_RESPONSES, ("input",)),
    "/v1/messages": (_MESSAGES, ("messages", "max_tokens")),
    "/v1/messages/count_tokens": (_MESSAGES, ("messages",)),
    "/v1/rerank": (_RERANK, ("query",)),
    "/tokenize": (_TOKENIZE, ("content",)),
    "/detokenize": (_DETOKENIZE, ("tokens",)),
    "/apply-template": (_APPLY, ("messages",)),
}

# Refused by name, in every route, because dropping them in silence would mislead: they ask for
# control over the engine, which no client gets, or for memory of earlier calls, which it has not.
CONTROL: Final = "clients do not control the engine's insides"
_STATELESS: Final = "Stoker keeps no conversations; send the whole input each time"
REFUSED: Final[Mapping[str, str]] = {
    "chat_template": CONTROL,
    "chat_parser": CONTROL,
    "grammar_lazy": CONTROL,
    "grammar_triggers": CONTROL,
    "preserved_tokens": CONTROL,
    "generation_prompt": CONTROL,
    "n_discard": CONTROL,
    "id_slot": CONTROL,
    "slot_id": CONTROL,
    "lora": CONTROL,
    "speculative": CONTROL,
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": _STATELESS,
}
