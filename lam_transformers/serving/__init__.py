"""`lam serve`: an embedding server with the interfaces of OpenAI, TEI and Ollama. Needs the extra `serve`.

scheduler.py and engine.py are plain code without a web framework: which text the model reads next, and how it reads it.
The other files put HTTP around them. docs/SERVING.md describes the server for its users.
"""
