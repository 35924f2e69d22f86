"""Objects that we offer on the bus: what they have, how they describe themselves, who answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jeepney import HeaderFields, Message, MessageFlag, new_error, new_method_return
from jeepney.low_level import parse_signature

from stoker_tray.adapters.session_bus import BUS, Body, SessionBus, header

log = logging.getLogger(__name__)

_ERROR = f"{BUS}.Error."


class Refused(Exception):
    """A call that gets a D-Bus error; `kind` is the error's last word."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.name = _ERROR + kind


@dataclass(frozen=True, slots=True)
class Property:
    signature: str
    get: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Method:
    """`do` gets the arguments and returns all that `gives` names."""

    takes: str
    gives: str
    do: Callable[..., Body]


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    properties: Mapping[str, Property] = field(default_factory=dict)
    methods: Mapping[str, Method] = field(default_factory=dict)
    signals: Mapping[str, str] = field(default_factory=dict)


# --- introspection ---------------------------------------------------------------------------


_IN, _OUT = ' direction="in"', ' direction="out"'


def _types(signature: str) -> Iterator[str]:
    rest = list(signature)
    while rest:
        before = len(rest)
        parse_signature(rest)  # takes the first complete type off
        yield signature[len(signature) - before : len(signature) - len(rest)]


def _args(signature: str, extra: str = "") -> str:
    return "".join(f'<arg type="{each}"{extra}/>' for each in _types(signature))


def _xml_of(interface: Interface) -> str:
    methods = (
        f'<method name="{name}">{_args(method.takes, _IN)}{_args(method.gives, _OUT)}</method>'
        for name, method in interface.methods.items()
    )
    properties = (
        f'<property name="{name}" type="{each.signature}" access="read"/>'
        for name, each in interface.properties.items()
    )
    signals = (
        f'<signal name="{name}">{_args(signature)}</signal>'
        for name, signature in interface.signals.items()
    )
    inside = "".join((*methods, *properties, *signals))
    return f'<interface name="{interface.name}">{inside}</interface>'


_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">'
)


# --- answers ---------------------------------------------------------------------------------


class DBusObjects:
    """Answers method calls to a few objects below `/`, each with one interface of its own.

    Whatever comes, the answer is a reply or a D-Bus error.
    """

    def __init__(self, objects: Mapping[str, Interface]) -> None:
        self._objects = {
            path: {each.name: each for each in (interface, *self._standard(path, interface))}
            for path, interface in objects.items()
        }
        self._objects["/"] = {each.name: each for each in self._standard("/", Interface(""))}

    def serve(self, call: Message, bus: SessionBus) -> None:
        """Do what a call asks for, and answer if it wants an answer."""
        try:
            method = self._method(call)
            reply = new_method_return(call, method.gives or None, method.do(*call.body))
            self._answer(call, reply, bus)
        except Refused as refused:
            self._answer(call, new_error(call, refused.name, "s", (str(refused),)), bus)
        except Exception:
            log.exception("a D-Bus call failed")
            self._answer(call, new_error(call, _ERROR + "Failed", "s", ("internal error",)), bus)

    def _answer(self, call: Message, answer: Message, bus: SessionBus) -> None:
        if not call.header.flags & MessageFlag.no_reply_expected:
            bus.send(answer)

    def _method(self, call: Message) -> Method:
        interfaces = self._objects.get(header(call, HeaderFields.path))
        if interfaces is None:
            raise Refused("UnknownObject", "no such object")
        wanted, member = header(call, HeaderFields.interface), header(call, HeaderFields.member)
        candidates = [interfaces.get(wanted)] if wanted else list(interfaces.values())
        for interface in candidates:
            method = interface.methods.get(member) if interface else None
            if method is None:
                continue
            if method.takes != header(call, HeaderFields.signature):
                raise Refused("InvalidArgs", f"{member} takes ({method.takes})")
            return method
        raise Refused("UnknownMethod", "no such method")

    def _standard(self, path: str, own: Interface) -> tuple[Interface, ...]:
        def get(interface: str, name: str) -> Body:
            found = own.properties.get(name) if interface in {"", own.name} else None
            if found is None:
                raise Refused("UnknownProperty", "no such property")
            return ((found.signature, found.get()),)

        def get_all(interface: str) -> Body:
            if interface not in {"", own.name}:
                return ({},)  # what other services say for their standard interfaces
            return ({name: (each.signature, each.get()) for name, each in own.properties.items()},)

        def put(_interface: str, _name: str, _value: object) -> Body:
            raise Refused("PropertyReadOnly", "every property is read-only")

        return (
            Interface(
                f"{BUS}.Properties",
                methods={
                    "Get": Method("ss", "v", get),
                    "GetAll": Method("s", "a{sv}", get_all),
                    "Set": Method("ssv", "", put),
                },
            ),
            Interface(
                f"{BUS}.Introspectable",
                methods={"Introspect": Method("", "s", lambda: (self._introspect(path),))},
            ),
            Interface(f"{BUS}.Peer", methods={"Ping": Method("", "", lambda: ())}),
        )

    def _introspect(self, path: str) -> str:
        inside = "".join(_xml_of(each) for each in self._objects[path].values())
        if path == "/":
            inside += "".join(f'<node name="{each[1:]}"/>' for each in self._objects if each[1:])
        return f"{_DOCTYPE}<node>{inside}</node>"
