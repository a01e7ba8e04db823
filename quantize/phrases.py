"""Sentences in several languages with gaps for numbers, names and places: everyday, short, own.

Each language has statements, and pairs of a question and its answer. They are not much, but they
reach experts that English and code leave alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

NAMES = ("Anna", "Milan", "Yusuf", "Chloé", "Renata", "Oleg", "Mei", "Tomás", "Ingrid", "Amara")
PLACES = ("Lisboa", "Kraków", "Kyoto", "İzmir", "Tallinn", "Lagos", "Québec", "Sevilla", "Graz")


@dataclass(frozen=True)
class Language:
    """Statements, and questions with their answers; gaps are n, m, year, name and place."""

    statements: tuple[str, ...]
    exchanges: tuple[tuple[str, str], ...]


LANGUAGES: Mapping[str, Language] = {
    "de": Language(
        (
            "Im Jahr {year} zog {name} nach {place} und eröffnete dort eine kleine Werkstatt.",
            "Für das Rezept braucht man {n} Gramm Mehl, zwei Eier und etwas Salz.",
            "Der Zug fährt um {m} Uhr ab, wenn es keine Verspätung gibt.",
            "Obwohl es die ganze Nacht geregnet hatte, war der Weg zum See trocken.",
            "Die Messung ergab {n} Grad, was niemand erwartet hatte.",
        ),
        (
            ("Wie viel sind {n} plus {m}?", "{n} plus {m} sind {sum}."),
            ("Wo wohnt {name}?", "{name} wohnt seit {year} in {place}."),
        ),
    ),
    "fr": Language(
        (
            "En {year}, {name} a quitté {place} pour apprendre le métier de relieur.",
            "Il faut laisser reposer la pâte pendant {n} minutes avant de l'étaler.",
            "La bibliothèque ferme à {m} heures, sauf le dimanche.",
            "Bien que la route fût longue, personne ne s'est plaint.",
            "On a compté {n} oiseaux sur l'étang, contre {m} l'hiver dernier.",
        ),
        (
            ("Combien font {n} plus {m} ?", "{n} plus {m} font {sum}."),
            ("Depuis quand {name} habite-t-elle à {place} ?", "Depuis {year}, je crois."),
        ),
    ),
    "es": Language(
        (
            "En {year} {name} compró una casa cerca de {place} y plantó {n} olivos.",
            "El autobús sale cada {m} minutos desde la plaza mayor.",
            "Aunque hacía frío, los niños siguieron jugando en el patio.",
            "Según el informe, la población creció un {n} por ciento.",
        ),
        (
            ("¿Cuánto es {n} más {m}?", "{n} más {m} es {sum}."),
            ("¿Dónde nació {name}?", "Nació en {place}, en el año {year}."),
        ),
    ),
    "it": Language(
        (
            "Nel {year} {name} aprì una libreria nel centro di {place}.",
            "Si cuoce la salsa a fuoco lento per {n} minuti, mescolando spesso.",
            "Il treno delle {m} è in ritardo a causa della neve.",
            "Nessuno sapeva dire perché la porta fosse aperta.",
        ),
        (
            ("Quanto fa {n} più {m}?", "{n} più {m} fa {sum}."),
            ("Chi abita a {place}?", "A {place} abita {name}, dal {year}."),
        ),
    ),
    "pt": Language(
        (
            "Em {year}, {name} mudou-se para {place} e começou a estudar música.",
            "O mercado abre às {m} horas e vende peixe fresco todos os dias.",
            "Foram necessários {n} dias para reparar a ponte.",
            "Embora chovesse muito, a festa continuou até tarde.",
        ),
        (
            ("Quanto é {n} mais {m}?", "{n} mais {m} é {sum}."),
            ("Onde mora {name}?", "{name} mora em {place} desde {year}."),
        ),
    ),
    "nl": Language(
        (
            "In {year} begon {name} een bakkerij in een zijstraat van {place}.",
            "De boot vaart om de {m} minuten, behalve bij harde wind.",
            "Er stonden {n} fietsen voor het station, waarvan de helft omgevallen was.",
        ),
        (("Hoeveel is {n} plus {m}?", "{n} plus {m} is {sum}."),),
    ),
    "pl": Language(
        (
            "W roku {year} {name} po raz pierwszy zobaczyła morze.",
            "Do ciasta trzeba dodać {n} gramów cukru i trochę cynamonu.",
            "Pociąg do miasta {place} odjeżdża z peronu {m}.",
            "Mimo że padał śnieg, wszyscy przyszli na czas.",
        ),
        (("Ile to jest {n} plus {m}?", "{n} plus {m} to {sum}."),),
    ),
    "ru": Language(
        (
            "В {year} году в городе {place} открыли новый мост через реку.",
            "На столе лежало {n} книг, и ни одна из них не была дочитана.",
            "Поезд приходит в {m} часов утра, если нет задержки.",
            "Хотя лето было холодным, урожай оказался хорошим.",
        ),
        (
            ("Сколько будет {n} плюс {m}?", "{n} плюс {m} будет {sum}."),
            ("Где живёт {name}?", "С {year} года {name} живёт в городе {place}."),
        ),
    ),
    "tr": Language(
        (
            "{year} yılında {name}, {place} yakınlarında küçük bir bahçe satın aldı.",
            "Toplantı saat {m} gibi bitti ve herkes evine döndü.",
            "Depoda {n} kutu vardı, ama yalnızca yarısı doluydu.",
        ),
        (("{n} artı {m} kaç eder?", "{n} artı {m}, {sum} eder."),),
    ),
    "zh": Language(
        (
            "{year}年，{name}从{place}搬到了海边的一个小镇。",
            "这本书一共有{n}页，我昨天只读了{m}页。",
            "虽然下着雨，孩子们还是在院子里玩得很开心。",
            "实验重复了{n}次，结果几乎没有变化。",
        ),
        (
            ("{n}加{m}等于多少？", "{n}加{m}等于{sum}。"),
            ("{name}住在哪里？", "{name}从{year}年起住在{place}。"),
        ),
    ),
    "ja": Language(
        (
            "{year}年に{name}さんは{place}で小さな喫茶店を開きました。",
            "駅まで歩いて{m}分、バスなら{n}秒ほど早く着きます。",
            "昨夜は雪が降ったので、道がとても滑りやすくなっています。",
        ),
        (("{n}たす{m}はいくつですか。", "{n}たす{m}は{sum}です。"),),
    ),
    "ko": Language(
        (
            "{year}년에 {name} 씨는 {place}에서 작은 서점을 열었습니다.",
            "회의는 {m}시에 시작해서 {n}분 동안 계속되었습니다.",
            "비가 많이 왔지만 강물은 넘치지 않았습니다.",
        ),
        (("{n} 더하기 {m}은 얼마입니까?", "{n} 더하기 {m}은 {sum}입니다."),),
    ),
    "ar": Language(
        (
            "في عام {year} انتقلت العائلة إلى {place} وبدأت حياة جديدة.",
            "يحتاج العمل إلى {n} يوما، وربما أكثر إذا تغير الطقس.",
            "وصل القطار في الساعة {m} ولم يكن هناك أحد في المحطة.",
        ),
        (("كم يساوي {n} زائد {m}؟", "{n} زائد {m} يساوي {sum}."),),
    ),
    "hi": Language(
        (
            "{year} में {name} ने {place} के पास एक छोटा सा घर बनाया।",
            "इस थैले में {n} किताबें और {m} कलम हैं।",
            "बारिश के बाद आसमान साफ़ था और हवा ठंडी थी।",
        ),
        (("{n} और {m} का योग कितना है?", "{n} और {m} का योग {sum} है।"),),
    ),
}
