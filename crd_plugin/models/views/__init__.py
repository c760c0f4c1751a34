"""Views: what a network is given of the images of a batch."""

from .channel_view import ChannelView
from .lab_view import LabView
from .resize_view import ResizeView

__all__ = ['ChannelView', 'LabView', 'ResizeView']
