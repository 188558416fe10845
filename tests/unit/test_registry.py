"""Functions of the application by namespace, and those of all namespaces."""

from __future__ import annotations

from sio_pg_adapter.local.registry import Registry


def test_functions_come_in_order_and_those_of_all_namespaces_take_the_namespace():
    registry = Registry({"/admin"})
    for namespace, function in (("/", ord), ("*", chr), ("/", abs), ("/admin", hex), ("*", oct)):
        registry.add(namespace, function)
    assert registry.of("/") == [(ord, ()), (chr, ("/",)), (abs, ()), (oct, ("/",))]
    assert registry.of("/other") == [(chr, ("/other",)), (oct, ("/other",))]
    assert registry.of("/admin") == [(hex, ())]


def test_a_namespace_may_be_set_apart_later():
    apart: set[str] = set()
    registry = Registry(apart)
    registry.add("*", abs)
    assert registry.of("/admin") == [(abs, ("/admin",))]
    apart.add("/admin")
    assert registry.of("/admin") == []
