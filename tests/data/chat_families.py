"""Chat templates in the manner of published families: how their turns stand, in our own words."""

from __future__ import annotations

_LOOP = "{%% for m in messages %%}%s{%% endfor %%}%s"
_HEAD = "<|im_start|>{{ m.role }}\n"

# One end for all turns, and calls of tools.
PLAIN = _LOOP % (
    _HEAD + "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)

# Shows reasoning after the last question only, with an empty block where there is none; generation
# starts within the block. So the rendering of a conversation's beginning is not a beginning of it.
FORGETS = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
) + _LOOP % (
    _HEAD + "{% set text = (m.content or '') | trim %}{% set why = m.reasoning_content or '' %}"
    "{% if '</think>' in text %}"
    "{% set why = text.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set text = text.split('</think>')[-1] | trim %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ why }}\n</think>\n\n{% endif %}{{ text }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}:"
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}</call>{% endfor %}"
    "<|im_end|>\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '<think>\n' }}{% endif %}",
)

# The head of the next message is what ends a turn; the last has no end at all.
HEADS = "<s>" + _LOOP % (
    "{{ {'user': '<|user|>', 'tool': '<|observation|>', 'system': '<|system|>'}"
    ".get(m.role, '<|assistant|>') }}\n"
    "{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}",
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
)

# System messages go to the front; what stands before </think> is cut off; an answer after tools
# follows the end of their outputs without a head; generation starts with a thought.
MUTATES = (
    "{% set ns = namespace(tool=false, system='') %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = ns.system + m.content %}"
    "{% endif %}{% endfor %}<s>{{ ns.system }}"
) + _LOOP % (
    "{% if m.role == 'user' %}<|user|>{{ m.content }}{% set ns.tool = false %}"
    "{% elif m.role == 'tool' %}{{ '' if ns.tool else '<|outputs|>' }}<|output|>{{ m.content }}"
    "{% set ns.tool = true %}"
    "{% elif m.role == 'assistant' and m.tool_calls %}<|assistant|>{{ m.content or '' }}<|calls|>"
    "{% for c in m.tool_calls %}<|call|>{{ c.function.name + c.function.arguments }}{% endfor %}"
    "<|calls_end|><|end|>"
    "{% elif m.role == 'assistant' %}{{ '<|outputs_end|>' if ns.tool else '<|assistant|>' }}"
    "{{ m.content.split('</think>')[-1] }}<|end|>{% set ns.tool = false %}{% endif %}",
    "{% if ns.tool %}<|outputs_end|>{% elif add_generation_prompt %}<|assistant|><think>\n"
    "{% endif %}",
)

# Two tokens close a turn, and another one the conversation.
TWO_ENDS = _LOOP % (
    "<|turn|>{{ m.role }}<|response|>{{ m.content }}<|end_response|><|end_turn|>\n",
    "{{ '<|turn|>assistant' if add_generation_prompt else '<|end|>' }}",
)

# The last turn ends otherwise than those before it, and calls of tools in a third way; the name of
# a function stands in its result too.
CHANNELS = _LOOP % (
    "{% if m.role == 'tool' %}<|start|>functions.{{ messages[loop.index0 - 1].tool_calls[0]"
    ".function.name }} to=assistant<|message|>{{ m.content }}<|end|>"
    "{% elif m.tool_calls %}<|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}"
    "<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endif %}",
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
)

# No head of the assistant's turn, and tools stand with the last question.
BRACKETS = "<s>" + _LOOP % (
    "{% if m.role == 'user' %}"
    "{% if tools and loop.index0 + 2 >= messages | length %}[TOOLS]{{ tools | tojson }}{% endif %}"
    "[INST] {{ m.content }}[/INST]{% else %} {{ m.content | trim }}</s>{% endif %}",
    "",
)

# What is learned is marked in the template, without the end of the turn.
MARKED = _LOOP % (
    _HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)

# Contents are lists of parts and nothing else.
PARTS = _LOOP % (
    _HEAD
    + "{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)

SPECIAL = (
    "<s> </s> <|im_start|> <|im_end|> <|user|> <|assistant|> <|observation|> <|system|> <|turn|> "
    "<|response|> <|end_response|> <|end_turn|> <|end|> <|start|> <|message|> <|return|> <|call|> "
    "<|outputs|> <|output|> <|outputs_end|> <|calls|> <|calls_end|>"
).split()
