"""The devices that Vulkan finds, read through its loader; software devices are told from GPUs.

Source: Vulkan 1.3 specification, vkCreateInstance and VkPhysicalDeviceProperties.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

_LOADER = "libvulkan.so.1"
_INSTANCE_CREATE_INFO = 1
"""VkStructureType."""
_SOFTWARE = 4
"""VK_PHYSICAL_DEVICE_TYPE_CPU."""
_PROPERTIES = 4096
"""Bytes for a VkPhysicalDeviceProperties, which has 824."""
_TYPE, _NAME = slice(16, 20), slice(20, 276)
"""Where its deviceType and deviceName are."""


class VulkanDevice(NamedTuple):
    """A device: its name, and whether it computes on the CPU."""

    name: str
    software: bool


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("structure_type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


def vulkan_devices() -> list[VulkanDevice]:
    """All devices, in Vulkan's order; none if no driver is installed.

    Raises: OSError: the Vulkan loader is not installed.
    """
    vulkan = ctypes.CDLL(_LOADER)
    info, instance = _InstanceCreateInfo(_INSTANCE_CREATE_INFO), ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        handles = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        return [_described(vulkan, handle) for handle in handles if handle is not None]
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _described(vulkan: ctypes.CDLL, handle: int) -> VulkanDevice:
    properties = ctypes.create_string_buffer(_PROPERTIES)
    vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), properties)
    name = properties.raw[_NAME].partition(b"\0")[0].decode(errors="replace")
    software = int.from_bytes(properties.raw[_TYPE], "little") == _SOFTWARE
    return VulkanDevice(name, software)
