"""What a server of the Open Inference Protocol V2 supports, found by asking it over HTTP.

Needs httpx and the standard library, and knows nothing of any server's code.
"""
