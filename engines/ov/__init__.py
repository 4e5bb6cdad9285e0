"""OpenVINO as a Session."""
