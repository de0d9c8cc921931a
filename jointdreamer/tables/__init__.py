"""The paper's tables and figures as commands: python -m jointdreamer.tables table1"""
