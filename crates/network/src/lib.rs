//! Pod networking: bridge, address management, host ports, overlays.
